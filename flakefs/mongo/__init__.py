"""MongoDB servers: connections, deadlines, errors in our words, the embedded servers, local clusters."""
