"""One module or package per framework. The rest of batchstream imports none of them."""
