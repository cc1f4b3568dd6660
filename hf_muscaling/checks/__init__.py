"""Is a parametrisation right? The coordinate check, and learning-rate transfer over width.

The checks have the functions' names in `hf_muscaling` itself; modules are named otherwise so that importing one never
hides its function.
"""
