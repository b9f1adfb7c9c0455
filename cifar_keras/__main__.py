"""`python -m cifar_keras` is `cifar-keras`."""

from cifar_keras.cli import command

command()
