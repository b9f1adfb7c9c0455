"""The report in a real browser. Needs Chromium (`apt-get install chromium`); `make test-slow` runs it."""

import html
import json
import re
import shutil
import subprocess

import pytest
from helpers import TINY

from cifar_keras.commands.study import report, run
from cifar_keras.utils.paths import PROJECT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

# The page stands in a frame of the wanted width, as a window can't be narrower than 500 pixels.
FRAME = """<!doctype html><meta charset="utf-8">
<iframe id="frame" width="{width}" height="900" srcdoc="{page}"></iframe><script>
const frame = document.getElementById("frame");
const overlaps = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
                           Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
frame.onload = async () => {{
  const page = frame.contentDocument, root = page.documentElement, found = {{}};
  found.wide = root.scrollWidth - frame.contentWindow.innerWidth;
  found.outside = [...page.querySelectorAll("figure, p, h1, h2, h3, li")].filter(
    e => e.getBoundingClientRect().right > frame.contentWindow.innerWidth + 1).map(e => e.textContent.slice(0, 60));
  const blocks = [...page.querySelectorAll("main > *")].map(e => [e, e.getBoundingClientRect()]);
  found.overlapping = blocks.slice(1).filter(([e, box], i) => overlaps(box, blocks[i][1])).map(([e]) => e.tagName);
  found.empty = [...page.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height < 40).length;
  const texts = [...page.querySelectorAll("figure svg")].slice(0, 2).map(svg => [...svg.querySelectorAll("text")]);
  const both = (a, b) => overlaps(a.getBoundingClientRect(), b.getBoundingClientRect());
  found.written_over = texts.flatMap(own => own.flatMap((a, i) =>
    own.slice(i + 1).filter(b => both(a, b)).map(b => a.textContent + " / " + b.textContent)));
  const sources = [...page.querySelectorAll("image")].map(e => e.href.baseVal);
  const loaded = await Promise.all(sources.map(source => new Promise(done => {{
    const picture = new Image();
    picture.onload = () => done(picture.naturalWidth > 0);
    picture.onerror = () => done(false);
    picture.src = source;
  }})));
  found.pictures = loaded.length;
  found.missing = loaded.filter(one => !one).length;
  const ink = frame.contentWindow.getComputedStyle(page.body);
  found.ink = ink.color, found.paper = ink.backgroundColor;
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


FAULTY = """<!doctype html><main><p style="width: 3000px">wide</p><p style="margin-top: -3em">over it</p>
<figure><svg width="90" height="9"><image href="data:image/png;base64,AAAA"/></svg></figure>
<figure><svg width="90" height="90"><text y="50">one</text><text y="50">two</text></svg></figure></main>
<script>console.error("broken")</script>"""


def looked_at(page, folder, *, width, dark):
    """What the browser finds on the page, as a dict, and what it complains of."""
    wrapper = folder / "frame.html"
    wrapper.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    scheme = 0 if dark else 1
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}",
        "--virtual-time-budget=20000", "--dump-dom", wrapper.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), complaints


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with its analyses, and one of the project's own rows, whose models are not in the repository."""
    root = tmp_path_factory.mktemp("study")
    for name in ("exp1", "exp4"):
        assert run(name, [*TINY, "--root", str(root)]) == 0
    assert report(root) == 0
    own = tmp_path_factory.mktemp("own")
    shutil.copytree(PROJECT / "results", own / "results")
    report(own)
    return [(where / "results" / "report" / "index.html").read_text(encoding="utf-8") for where in (root, own)]


def test_faults_are_seen(tmp_path):
    found, complaints = looked_at(FAULTY, tmp_path, width=390, dark=False)
    assert len(complaints) == 1 and found["wide"] > 2000 and found["outside"] == ["wide"]
    assert len(found["overlapping"]) == 1 and found["missing"] == 1 and found["empty"] == 1
    assert found["written_over"] == ["one / two"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", [0, 1], ids=["embedded", "recorded"])
def test_the_report_in_a_browser(pages, which, width, dark, tmp_path):
    found, complaints = looked_at(pages[which], tmp_path, width=width, dark=dark)
    assert complaints == [] and found["missing"] == 0 and found["empty"] == 0
    assert found["wide"] <= 0 and found["outside"] == [] and found["overlapping"] == []
    assert found["written_over"] == []
    assert found["pictures"] > 50 or which == 1
    light, deep = (sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("paper", "ink"))
    assert (light > 600 > 300 > deep) != dark
