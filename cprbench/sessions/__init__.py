"""What happens in the child process of a run: it loads, chooses, trains and scores, and says when phases change."""
