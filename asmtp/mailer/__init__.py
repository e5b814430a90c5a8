"""Many connections: AsyncMailer, its pool, queue and policies."""
