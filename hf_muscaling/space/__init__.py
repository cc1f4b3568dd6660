"""A fitted law as a static page: one index.html that predicts in the browser, without a server."""

from hf_muscaling.space.designs import Design
from hf_muscaling.space.publish import push_space, space_files, write_space

__all__ = ["Design", "push_space", "space_files", "write_space"]
