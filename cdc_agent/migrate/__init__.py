"""Generations: a collection is built anew beside the one that answers, and takes its place at once.

``names`` owns what a generation is called in the store, ``copying`` how far its first copy is, ``serving`` which one
answers a search, ``planning`` what a new one would cost. The daemon's ``migrations`` drives them.
"""
