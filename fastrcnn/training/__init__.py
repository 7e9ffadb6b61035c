"""Training. train.py is the loop; weights, schedule, log, curves, checkpoint and interruption are its parts."""
