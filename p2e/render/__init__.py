"""Rendering: `pipeline.Renderer` makes clips, `slot.LoraSlot` adapts its transformer, `video` writes and reads them."""
