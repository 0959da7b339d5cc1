// A library with a vendor's name and nothing in it but its dependency on libflexnpu_client.so.
