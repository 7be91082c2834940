/* Folders for tests, under $TMPDIR or /tmp. */
#pragma once

/* A new, empty folder; its path is the caller's. */
char *temp_folder_new(void);
/* Removes it with all that is in it, and frees the path. */
void temp_folder_free(char *path);
