"""What is said of rows, once, for pages, API and command line: frozen values that these only lay out.

A view reads and computes; it changes nothing, and knows neither HTML nor JSON nor tables.
"""
