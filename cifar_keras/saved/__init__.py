"""Everything about a saved model's file: saving, safe loading, prediction, inspection and export."""
