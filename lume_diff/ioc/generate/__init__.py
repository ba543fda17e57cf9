"""Files for other programs, made from a model: displays and devices."""
