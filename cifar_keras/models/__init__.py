"""The compared models side by side (`zoo`), the blocks they are built of, and where pretrained weights come from."""
