"""Container images: what goes into them, how they are built, and what runs inside them.

`start`, `health` and `sbom` run inside the image with the standard library only, so this file imports nothing.
"""
