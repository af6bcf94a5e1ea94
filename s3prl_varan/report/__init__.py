"""Tables, figures and one HTML page of experiment folders. See run/report.py. No torch."""
