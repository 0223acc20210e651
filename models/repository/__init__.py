"""The repository that devices take their models from: keys, signed metadata, releases, rollouts.

It is a plain folder of files as TUF (The Update Framework) lays them out; any web server can serve it.
"""
