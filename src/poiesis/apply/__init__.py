"""What a trained model is good for, written once against capabilities."""
