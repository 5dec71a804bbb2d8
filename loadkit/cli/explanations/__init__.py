"""Every stable code as data: what it means, why it matters, and the ways out."""
