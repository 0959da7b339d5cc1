// A library that programs name and of which they use nothing.
