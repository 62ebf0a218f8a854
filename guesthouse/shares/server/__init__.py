"""The file server of one share: SFTP 3 on a socket, behind walls that show the share alone."""
