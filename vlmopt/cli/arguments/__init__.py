"""What each command takes: a module a command, without torch, so that help, completion and refusals come at once."""
