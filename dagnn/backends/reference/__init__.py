"""The kernels' meaning: readable code that runs on any array module (`self.xp`), one mixin per family."""
