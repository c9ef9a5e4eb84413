"""K captions for a clip: spoken stamps in two languages, and the paper's recipes for AudioCaps and Clotho."""
