"""Compares four models on CIFAR-10 with Keras 3. Start reading at `models/zoo.py` and `runner.py`."""
