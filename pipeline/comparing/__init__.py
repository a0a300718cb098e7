"""Versions of a model beside each other, and the rule by which one replaces the champion."""
