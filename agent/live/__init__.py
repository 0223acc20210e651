"""The models in service, and how one takes the place of another under traffic."""
