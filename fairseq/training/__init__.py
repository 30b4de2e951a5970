"""One update, the loop around it, the state it leaves, and the policy of when to save and stop."""
