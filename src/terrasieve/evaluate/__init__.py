"""Evaluation of frozen encoders: tasks in, scores with intervals out.

``tasks`` finds images, targets and splits; ``protocol`` extracts features and runs ``knn`` and ``probe``; ``metrics``
scores them. METHODS.md, section 9.
"""
