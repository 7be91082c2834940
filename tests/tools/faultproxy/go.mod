module portalbd/tests/tools/faultproxy

go 1.22
