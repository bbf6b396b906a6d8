"""What a handler's own calls cost: held before each, booked once, whatever the handler does with them."""
