"""CIFAR study software on Keras 3: four models compared on tf.data pipelines. Start at `zoo.py` and `runner.py`."""
