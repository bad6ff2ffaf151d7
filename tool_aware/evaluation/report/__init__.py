"""Tables, figures and pages that show an evaluation."""
