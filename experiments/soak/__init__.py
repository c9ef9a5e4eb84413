"""A training that is disturbed at random moments must end as if nothing had happened."""
