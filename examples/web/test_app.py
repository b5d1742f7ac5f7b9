"""Unit tests of the service; they run in the image's `test` target."""

import unittest

from app import parse_work


class ParseWork(unittest.TestCase):
    def test_the_id_of_a_get_is_in_the_query(self):
        self.assertEqual(parse_work("/work?id=a-1&ms=5", b""), ("a-1", 5))

    def test_the_id_of_a_post_is_the_body(self):
        self.assertEqual(parse_work("/work", b"b-2"), ("b-2", 0))

    def test_nonsense_is_refused(self):
        for path, body in [("/work", b""), ("/work?id=" + "x" * 65, b""), ("/work?id=a%20b", b""), ("/work?id=a&ms=99999", b"")]:
            with self.assertRaises(ValueError):
                parse_work(path, body)


if __name__ == "__main__":
    unittest.main()
