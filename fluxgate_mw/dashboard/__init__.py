"""The web page: a Requests Explorer and a cost breakdown over any store, as an ASGI app to mount or to serve.

`fluxgate_mw.dashboard.app.make_dashboard` makes it. It reads a `Store` and nothing else: it knows of no delivery, no
patching and no request context. Jinja comes with the extra `dashboard` and is imported by `render` alone.
"""
