"""From the code that made an event to the flusher: the queue in memory, the Redis stream and the spool on disk."""
