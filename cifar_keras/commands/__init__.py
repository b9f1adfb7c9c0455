"""What `cifar-keras VERB` does, apart from parsing: one module per verb or group of verbs."""
