"""The demo: a whole pipeline on one machine, with nothing to install beside the package itself.

``command`` runs it, ``stage`` puts up Postgres and the daemon, ``story`` plays on it, ``claims`` keeps count of what
was promised. The rest are the props.
"""
