from fb3.upload.client import redacted


def test_addresses_lose_their_queries():
    assert "upload_id" not in redacted("failed: http://h/blob/t?upload_id=1 again")
