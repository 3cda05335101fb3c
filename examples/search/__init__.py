"""A small search service over this project's own text; `make demo` runs it.

corpus.py   the text: Markdown sections and module docstrings
bm25.py     ranking, plain Python
app.py      the Serve application: ingress -> Index (unary) and Snippets (streaming)
meter.py    a caller replica that measures one call over each transport
demo.py     deploys, asks over HTTP, checks the answers, prints the comparison
"""
