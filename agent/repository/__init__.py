"""Reading a repository of signed releases: what is trusted, and how its files come here.

``models.repository`` writes one.
"""
