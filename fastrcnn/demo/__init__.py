"""The demo: draws scenes, trains a small detector on them, evaluates it and shows what it finds."""
