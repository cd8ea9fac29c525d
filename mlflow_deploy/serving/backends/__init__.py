"""Back ends: one file per form of servable, behind the interface in `base`."""
