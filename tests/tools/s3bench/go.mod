module portalbd/tests/tools/s3bench

go 1.22
