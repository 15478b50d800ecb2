"""The endpoint: effects in, LoRAs and videos out."""
