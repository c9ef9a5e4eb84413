"""K captions for a picture: the paper's bilingual experiment on stamps, and its recipes for TextCaps."""
