"""Tables, figures and one HTML page from finished experiments' result files. See run/report.py. Imports no torch."""
