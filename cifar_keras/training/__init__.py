"""One `fit` per stage: callbacks, resuming, optimisers, stored features, tracking."""
