"""Study: named arms of one pretraining recipe, over seeds, scored alike."""
