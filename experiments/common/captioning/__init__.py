"""Code that the experiments on pictures and on clips share: configuration, the small base, loading, scores."""
