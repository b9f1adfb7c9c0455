"""Run records in; tables, figures, sentences and pages out."""
